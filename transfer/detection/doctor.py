"""Check whether each engine works here by using it, not by comparing version numbers."""

from __future__ import annotations

from typing import Any

from transfer.detection import engines
from transfer.segmentation import engines as segmentation_engines

_NO_CV2 = "without OpenCV no module that reads images can be imported: see cv2 below"


def examine() -> dict[str, Any]:
    """Return {"engines": {name: {usable, version, compiled, advice}}, "cv2": {healthy, version, advice}, "versions": {}}."""
    cv2 = _cv2()
    found = {
        name: _engine(room.get(name)) if cv2["healthy"] else _unusable(_NO_CV2)
        for room in (engines, segmentation_engines)
        for name in room.names()
    }
    return {"engines": found, "cv2": cv2, "versions": _versions()}


def healthy(found: dict[str, Any]) -> bool:
    """True if every engine works."""
    return found["cv2"]["healthy"] and all(engine["usable"] for engine in found["engines"].values())


def text(found: dict[str, Any]) -> str:
    """Return the findings as text for people."""
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


def _engine(engine: engines.Engine | segmentation_engines.Engine) -> dict[str, Any]:
    if lacking := engine.missing():
        return _unusable(lacking, "not installed")
    version, compiled, advice = "unknown version", False, ""
    try:
        engine.prepare()
        version, compiled = engine.version(), engine.compiled()
        engine.try_operators()
    except Exception as error:
        advice = (
            f"{_sentence(error)}; install keeps what is installed, so first pip uninstall the package that fails (mmcv, "
            "mmdet, mmsegmentation, detectron2), then: python -m transfer.detection install"
        )
    return {"usable": not advice, "version": version, "compiled": compiled, "advice": advice}


def _unusable(advice: str, version: str = "not examined") -> dict[str, Any]:
    return {"usable": False, "version": version, "compiled": False, "advice": advice}


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


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
    except Exception as error:  # an uninstalled OpenCV may leave an empty folder that imports
        repair = "pip install --force-reinstall opencv-python-headless"
        return {"healthy": False, "version": version, "advice": f"{_sentence(error)}; {repair}"}
    return {"healthy": True, "version": version, "advice": advice}


def _versions() -> dict[str, str]:
    import platform

    import torch
    import torchvision

    return {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
