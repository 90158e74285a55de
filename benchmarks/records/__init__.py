"""Records: what one holds, where it lies, how it is read, what was known when it was made."""
