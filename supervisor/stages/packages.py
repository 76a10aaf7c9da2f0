"""What an agent is told of the packages its stage may install; not what a gateway lets pass (`sandbox/gateway/registries`)."""

from supervisor.pipeline.definition import Stage

NAMES_SHOWN_MAX = 40
"""Of each list, so that a task stays short; the rest is counted."""
_ELSE = "Nothing else reaches a network, and what you install is no part of your result: whoever runs it later installs it again."


def packages_in_words(stage: Stage) -> tuple[str, ...]:
    """Return the rule about packages: one sentence or two, none for a stage without a network."""
    match stage.network:
        case "none":
            return ()
        case "registries":
            return (f"You may install packages: `pip install NAME`, and `npm install NAME` where npm is there. {_ELSE}",)
        case "allowlist":
            lists = (_listed("pip", stage.packages.pip), _listed("npm", stage.packages.npm))
            return (f"You may install these packages and no other: {'; '.join(each for each in lists if each)}. {_ELSE}",)


def _listed(tool: str, names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:NAMES_SHOWN_MAX])
    more = f" and {len(names) - NAMES_SHOWN_MAX} more" if len(names) > NAMES_SHOWN_MAX else ""
    return f"with {tool} {shown}{more}" if names else ""
