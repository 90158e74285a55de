"""Measure a network by nearest neighbours on the demo scenes, and set it beside an untrained one."""

import torchvision

import backbench

trained = backbench.load("random:resnet18", name="first")
other = backbench.load(torchvision.models.resnet18(), name="second", input={"size": 64})

records = [
    backbench.measure(backbone, "imagenet_knn", data="demo", limit=64, k=[5], headline_k=5, size=64)
    for backbone in (trained, other)
]
for record in records:
    print(record.backbone.name, record.primary, record.metrics[record.primary].value)

print(backbench.compare(*records, to="second", literature=False))
