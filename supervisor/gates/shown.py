"""What a process read of an import, in words for a finding; not what is wrong with it (`signatures`)."""

from sandbox.contract.signatures import Parameter, Shape

SHOWN_CHARS_MAX = 300


def described(shape: Shape) -> str:
    """Return a shape as a person would write it, at most 300 characters."""
    text = _described(shape)
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[: SHOWN_CHARS_MAX - 1]}…"


def _described(shape: Shape) -> str:
    claims = f", with a `__signature__` of type {shape.claims}" if shape.claims else ""
    match shape.kind:
        case "function":
            wraps = f", around {_described(shape.inner[0])}" if shape.inner else ""
            head = "async def" if shape.is_async else "def"
            return f"{head} ({parameters(shape.parameters)}){f' -> {shape.returns}' if shape.returns else ''}{claims}{wraps}"
        case "property" | "static method" | "class method":
            return f"{shape.kind}: {_described(shape.inner[0])}{claims}" if shape.inner else shape.kind
        case "class":
            return f"class {shape.type}{claims}"
        case "object" | "value":
            wraps = f" around {_described(shape.inner[0])}" if shape.inner else ""
            return f"{'an' if shape.kind == 'object' else 'a value, an'} instance of {shape.type}{claims}{wraps}"


def parameters(given: tuple[Parameter, ...]) -> str:
    """Return parameters between brackets, with the marks of their kinds."""
    words: list[str] = []
    for at, each in enumerate(given):
        before = given[at - 1].kind if at else None
        if before == "positional-only" and each.kind != "positional-only":
            words.append("/")
        if each.kind == "keyword-only" and before not in {"keyword-only", "var-positional"}:
            words.append("*")
        words.append(_parameter(each))
    return ", ".join([*words, "/"] if given and given[-1].kind == "positional-only" else words)


def _parameter(each: Parameter) -> str:
    stars = {"var-positional": "*", "var-keyword": "**"}.get(each.kind, "")
    annotation = f": {each.annotation}" if each.annotation else ""
    return f"{stars}{each.name}{annotation}{f' = {each.default}' if each.default else ''}"
