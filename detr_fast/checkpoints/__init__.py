"""Reading, converting and loading weights: files, formats of other libraries, and the architecture they imply."""
