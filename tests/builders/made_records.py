"""Build records for tests, with and without a number."""

from benchmarks.records import store


def make_record(
    value,
    *,
    name="mine",
    weights="a",
    seed=0,
    cell="imagenet_linear",
    metric="top1",
    data="imagenet",
    manifest="m",
    published=True,
    demo=False,
    profile="full",
    config="c",
    counts=(3000, 1000),
    unit="%",
    higher=True,
    arch="resnet50",
    tuned=None,
    more=None,
    engine=None,
    named=None,
    source="",
    kind="moco",
):
    metrics = {metric: value, **(more or {})}
    return store.Result(
        status="ok",
        profile=profile,
        suite="paper",
        seed=seed,
        backbone=store.BackboneRecord(
            name=name,
            weights_sha256=weights * 64,
            format=kind,
            arch={"name": arch},
            input={},
            named=named,
            source=source,
        ),
        cell=cell,
        task=store.TaskRecord(
            name="linear_probe", version=1, config={}, config_sha256=config * 64, tuned=tuned or {}, engine=engine
        ),
        data=store.DataRecord(
            name=data,
            train="train",
            test="val",
            counts={"train": counts[0], "test": counts[1], "classes": 3},
            manifest_sha256=manifest * 64,
            is_published=published,
            is_demo=demo,
        ),
        metrics={
            key: store.MetricRecord(value=number, unit=unit, higher_is_better=higher) for key, number in metrics.items()
        },
        primary=metric,
        provenance=store.Provenance(
            commit="f" * 40,
            dirty=False,
            packages={"torch": "2.9"},
            device="cpu",
            wall_s=1.0,
            peak_memory=1,
            argv=["run_one.py"],
            threads=1,
        ),
    )


def make_absent(status, reason, name="mine", cell="voc07_svm"):
    values = make_record(1.0, name=name, cell=cell).model_dump(by_alias=True)
    return store.Result.model_validate(
        values | {"status": status, "reason": reason, "metrics": {}, "data": None, "primary": None, "provenance": None}
    )
