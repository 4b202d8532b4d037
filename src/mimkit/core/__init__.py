"""What every room may use: errors, addressed randomness, configs, processes, batches, measures, picture grids."""
