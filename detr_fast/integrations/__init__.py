"""Other people's detectors on our hot paths; import the module of the library at hand.

``huggingface`` for transformers, ``rfdetr`` for RF-DETR, ``mmdet`` for MMDetection 3.
"""
