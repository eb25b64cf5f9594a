"""Takes memory until the kernel kills it."""

held = []
while True:
    held.append(b"x" * (8 << 20))
