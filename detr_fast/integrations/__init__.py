"""Integrations that run the ops of this package in detectors of other libraries, the host libraries.

``detr_fast.integrations.huggingface`` is the integration of transformers, ``detr_fast.integrations.rfdetr`` that of
RF-DETR, and ``detr_fast.integrations.mmdet`` that of MMDetection 3. Importing one requires its host library.
``detr_fast.integrations.mmdet_api`` has names of MMDetection 2.11 and requires torch only.
"""
