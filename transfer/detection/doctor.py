"""Whether each engine can be used here: found by using it, not by looking at version numbers."""

from __future__ import annotations

from typing import Any


def examine() -> dict[str, Any]:
    """{"engines": {name: {usable, version, compiled, advice}}, "cv2": {healthy, version, advice}, "versions": {}}."""
    cv2, found = _cv2(), {}
    if cv2["healthy"]:  # nothing that reads images can be imported without it
        from transfer.detection import engines

        found = {name: _engine(engines.get(name)) for name in engines.names()}
    return {"engines": found, "cv2": cv2, "versions": _versions()}


def healthy(found: dict[str, Any]) -> bool:
    """Whether every engine can be used."""
    return found["cv2"]["healthy"] and all(engine["usable"] for engine in found["engines"].values())


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = []
    for name, engine in found["engines"].items():
        lines.append(f"{name}: {'usable' if engine['usable'] else 'NOT usable'}; {engine['version']}")
        lines.append(f"  operators: {'compiled' if engine['compiled'] else 'served by torchvision'}")
        lines += [f"  {engine['advice']}"] if engine["advice"] else []
    cv2 = found["cv2"]
    lines.append(f"cv2: {'imports' if cv2['healthy'] else 'does NOT import'}; {cv2['version']}")
    lines += [f"  {cv2['advice']}"] if cv2["advice"] else []
    lines.append(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    return "\n".join(lines)


def _engine(engine: Any) -> dict[str, Any]:
    advice = engine.missing()
    version, compiled = "not installed", False
    if advice is None:
        try:
            engine.prepare()
            version, compiled = engine.version(), engine.compiled()
            engine.try_operators()
        except Exception as error:
            advice = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; try: python -m transfer.detection install"
    return {"usable": advice is None, "version": version, "compiled": compiled, "advice": advice or ""}


def _cv2() -> dict[str, Any]:
    from importlib.metadata import distributions

    packages = {
        d.metadata["Name"]: d.version for d in distributions() if (d.metadata["Name"] or "").startswith("opencv")
    }
    version = ", ".join(f"{n} {v}" for n, v in sorted(packages.items())) or "not installed"
    advice = ""
    if len(packages) > 1:
        advice = (
            f"they share the folder cv2: pip uninstall {' '.join(sorted(packages))}; pip install opencv-python-headless"
        )
    try:
        import cv2

        cv2.setNumThreads(cv2.getNumThreads())
    except ImportError as error:
        return {"healthy": False, "version": version, "advice": f"{error}; pip install opencv-python-headless"}
    return {"healthy": True, "version": version, "advice": advice}


def _versions() -> dict[str, str]:
    import platform

    import torch
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
