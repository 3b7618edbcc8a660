"""Train or evaluate a system: ``python train_net.py datasets=<name> system=<name> [key=value ...]``, the same as ``npbgpp train``. See README.md."""

from npbgpp.train import main

if __name__ == "__main__":
    main()
