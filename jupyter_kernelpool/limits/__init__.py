"""Ways to hold kernels to their limits: one file each. They are guard-rails, not fences."""
