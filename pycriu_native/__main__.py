"""``python -m pycriu_native`` is ``pycriu-native``, which runs without libcriu too."""

from pycriu_native_main import main

if __name__ == "__main__":
    main()
