"""3D gaussians (Kerbl et al., SIGGRAPH 2023), a fixed number of them, placed by Markov chain Monte Carlo (Kheradmand et al., NeurIPS 2024)."""
