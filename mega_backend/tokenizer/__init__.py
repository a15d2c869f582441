"""The mesh tokenizer: hierarchy of a mesh, mesh convolution, quantiser and the Mesh-VQ-VAE made of them."""
