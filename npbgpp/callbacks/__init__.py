"""What happens beside training: pictures, tables, progress. Only train_net.py reaches these."""
