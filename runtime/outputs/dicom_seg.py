"""Write label maps as DICOM segmentation objects (SEG) that refer to the images they were made of."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.errors import OutputError
from litemed.runtime.inputs.dicom_file import naming_damage

if TYPE_CHECKING:
    from litemed.runtime.inputs.dicom import Dicom

_MAX_BYTES: Final = 2**32 - 2  # of the pixels of one DICOM file


def write_seg(dicom: Dicom, labels: NDArray[np.unsignedinteger], objects: int, file: BinaryIO) -> None:
    """Write a label map, as the images are seen, as a SEG of one segment for each of the objects.

    Of images of which `Dicom.no_seg` is empty.

    The segments are called "box 1" and so on, and have a frame for every slice, empty ones too, without which
    some viewers misplace the others; a segment that came out empty is listed all the same.

    labels: (D, H, W), or (H, W) for a single image.

    Raises InputError for images that lack what a SEG must repeat of them, OutputError for what is too large
    for one file, ModuleNotFoundError without highdicom.
    """
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom import dcmread
    from pydicom.sr.codedict import codes
    from pydicom.valuerep import DSfloat

    if dicom.no_seg:
        raise OutputError(f"{dicom.path}: {dicom.no_seg}")
    columns, rows, depth = dicom.shape
    if objects * depth * rows * columns > 8 * _MAX_BYTES:
        raise OutputError(f"{dicom.path}: a SEG of {objects} objects and {depth} slices is over 4 GB")
    # From what is seen to the order of the frames, by file and in it.
    stored = dicom.view.store(labels).swapaxes(0, 2) if depth > 1 else labels[np.newaxis]
    by_file = {file.path: place for place, file in enumerate(dicom.files)}
    order = sorted(range(depth), key=lambda k: (by_file[dicom.frames[k].path], dicom.frames[k].index))
    family: Any = codes.DCM.ArtificialIntelligence
    algorithm = highdicom.AlgorithmIdentificationSequence("litemed", family, version("litemed"))
    with naming_damage(dicom.path, "lacks what a DICOM segmentation of it needs"):
        segmentation = highdicom.seg.Segmentation(
            source_images=[dcmread(one.path, stop_before_pixels=True, force=True) for one in dicom.files],
            pixel_array=np.ascontiguousarray(stored[order]),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[
                SegmentDescription(
                    segment_number=number,
                    segment_label=f"box {number}",
                    segmented_property_category=codes.SCT.Tissue,
                    segmented_property_type=codes.SCT.Tissue,
                    algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
                    algorithm_identification=algorithm,
                )
                for number in range(1, objects + 1)
            ],
            series_instance_uid=highdicom.UID(),
            series_number=1000,
            series_description="litemed",
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="litemed",
            manufacturer_model_name="litemed-run",
            software_versions=version("litemed"),
            device_serial_number="0",
            omit_empty_frames=False,
        )
        if dicom.spacing is not None:
            # What the images say of the distance of their slices, and is repeated, may be wrong.
            (measures,) = segmentation.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
            measures.SpacingBetweenSlices = DSfloat(dicom.spacing[0], auto_format=True)
            measures.SliceThickness = measures.get("SliceThickness") or measures.SpacingBetweenSlices
        segmentation.save_as(file)
