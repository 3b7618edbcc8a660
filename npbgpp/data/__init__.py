"""From files on disk to batches of views. The rest of the package knows of data only what ``npbgpp.data.scene`` defines."""
