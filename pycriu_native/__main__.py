"""``python -m pycriu_native`` is ``pycriu-native``."""

from .cli import main

if __name__ == "__main__":
    main()
