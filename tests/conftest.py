"""What every test shares: one thread, so that the suite takes the same time and gives the same bits everywhere."""

import torch

torch.set_num_threads(1)
