"""Files that torch.save wrote: the zip files of today, and what it wrote until 2020."""
