"""Files of other tools: annotations (YOLO, VOC, COCO, Label Studio), GeoTIFF and videos."""
