"""Which paths are tests, documentation or protected (DECISIONS G3, ABUSE S12-S14); not who may write them (`contract`).

Protected is what runs, configures or instructs something without being the product: gates, hooks of builds and of developers'
tools, CI, instructions to agents, and what says which dependencies are installed.
"""

TESTS = ("tests/**", "test/**", "**/test_*.py", "**/*_test.*", "**/*.test.*", "**/*.spec.*", "**/__tests__/**")
OF_THE_TESTS = (*TESTS, "**/conftest.py")
"""What runs in the tests' process of a sealed run, and what the product cannot read there."""
CONFTESTS_OF_TESTS = ("tests/**/conftest.py", "test/**/conftest.py", "**/__tests__/**/conftest.py")
"""A `conftest.py` in a directory of tests belongs to the tests."""
DOCS = ("docs/**", "**/*.md", "README*", "CHANGELOG*", "changelog.d/**")

_GATES = (
    "quality.toml",
    "pyproject.toml",
    "setup.cfg",
    "tox.ini",
    "pytest.ini",
    ".pytest.ini",
    "conftest.py",
    "ruff.toml",
    ".ruff.toml",
    "mypy.ini",
    ".mypy.ini",
    "pyrightconfig.json",
    ".flake8",
    ".pylintrc",
    ".bandit",
    ".coveragerc",
    ".secrets.baseline",
)
_BUILDS = ("setup.py", "Makefile", "noxfile.py", "package.json", ".npmrc", "pip.conf", "requirements*.txt", "requirements/**")
_CI = (".git*", ".git*/**", ".andon/**", ".circleci/**", ".travis.yml", "azure-pipelines.yml", "Jenkinsfile", ".pre-commit-config.*")

PROTECTED_AT_ROOT = (*_CI, *_GATES, *_BUILDS)
PROTECTED_ANYWHERE = (
    "**/AGENTS.md",
    "**/CLAUDE.md",
    "**/GEMINI.md",
    "**/.claude/**",
    "**/.cursor/**",
    "**/.cursorrules",
    "**/.mcp.json",
    "**/.vscode/**",
    "**/.idea/**",
    "**/.devcontainer/**",
    "**/.husky/**",
    "**/.envrc",
    "**/*.lock",
    "**/*-lock.*",
    "**/go.sum",
    "**/npm-shrinkwrap.json",
    "**/conftest.py",
)
