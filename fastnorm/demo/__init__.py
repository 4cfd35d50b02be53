"""The demo: one small convnet trained twice on real images, with torch.nn and with fastnorm, side by side.

Run it with ``python -m fastnorm demo``; :func:`fastnorm.demo.run.run_demo` is the same thing from Python.
"""
