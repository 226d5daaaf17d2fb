"""Ways to keep a kernel's state: one file each. A checkpoint is forked, never changed."""
