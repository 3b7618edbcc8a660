"""Base layer without knowledge of scenes or methods: typed settings, files, paths, processes, costs."""
