"""Python imports a module of this name while it starts, just before the program; in a template it finds this one.

It ensures that a template never runs its workers' program itself, whatever fails and however old the Python is.
Everything else is in :mod:`quorate_template`, beside this file.
"""

import os

if __name__ == "sitecustomize" and "QUORATE_TEMPLATE" in os.environ:
    try:
        import quorate_template  # type: ignore[import-not-found] # beside this file, in a folder of sys.path

        _site_error = quorate_template.become_template(int(os.environ["QUORATE_TEMPLATE"]))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    # Only workers come here; the interpreter now goes on with their program.
    if _site_error is not None:
        raise _site_error
