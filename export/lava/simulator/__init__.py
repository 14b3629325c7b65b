"""A network on Lava's Loihi 2 simulator. Runs under Python 3.10 with numpy, h5py and lava-dl, and without snnzoo.

That is why its modules import each other relatively: here they are ``snnzoo.export.lava.simulator``, and where
``python -m simulator`` runs them in the folder above, they are ``simulator``.
"""
