"""Is done, but has left something that aborts the process while Python ends, as a process group of torch may do."""

import ctypes

new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
left_over = new_capsule(ctypes.c_void_p(1), None, ctypes.cast(ctypes.CDLL(None).abort, ctypes.c_void_p))
