"""Medical imaging: from DICOM series to a segmentation a radiologist can open."""
