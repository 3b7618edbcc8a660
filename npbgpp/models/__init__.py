"""Networks: pure `nn.Module`s that know neither data sets nor training."""
