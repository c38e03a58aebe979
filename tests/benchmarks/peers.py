"""The same JPEGs by other libraries: one measurement per process, in an environment of their own (peers.txt).

    python peers.py convert FOLDER        write FOLDER/images in the formats of those that have their own; print what there is
    python peers.py NAME FOLDER CORES     print NAME's images per core-second

Every entry makes inception crops of 224x224, bicubic and antialiased, in uint8 and without flips: what a GPU can do is left to
it. Loaders make shuffled batches, a worker per core, in the way that their documentation recommends.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image, decode_jpeg
from torchvision.transforms import v2

SIZE, AREA, RATIO = 224, (0.05, 1.0), (3 / 4, 4 / 3)
BATCH = 64
CROP = v2.RandomResizedCrop(SIZE, AREA, RATIO, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
LIBRARIES = ("torch", "torchvision", "timm", "pillow", "litdata", "mosaicml-streaming", "nvidia-dali-cuda130")


def torchvision_decode_crop(folder: Path, _cores: int) -> Iterator[int]:
    """torchvision's decode_jpeg and v2 crop, one core"""
    torch.set_num_threads(1)
    for image in [path.read_bytes() for path in files(folder)]:
        CROP(to_pixels(image))
        yield 1


def torchvision_loader(folder: Path, cores: int) -> Iterator[int]:
    """torchvision's ImageFolder, decode_image and v2 crop, torch's DataLoader"""
    dataset = ImageFolder(folder / "images", CROP, loader=lambda path: decode_image(path, ImageReadMode.RGB))
    return sizes(DataLoader(dataset, BATCH, shuffle=True, num_workers=cores))


def timm_loader(folder: Path, cores: int) -> Iterator[int]:
    """timm's create_loader on a folder (PIL), up to where its batches would go to a GPU"""
    from timm.data import create_dataset, create_loader

    dataset = create_dataset("", folder / "images", split="train", is_training=True)
    crop_only = {"scale": AREA, "ratio": RATIO, "interpolation": "bicubic", "hflip": 0.0, "color_jitter": None}
    workers = {"num_workers": cores, "device": torch.device("cpu")}
    return sizes(create_loader(dataset, SIZE, BATCH, is_training=True, **crop_only, **workers).loader)


def litdata_loader(folder: Path, cores: int) -> Iterator[int]:
    """litdata's StreamingDataLoader, which decodes by torchvision, and v2 crop"""
    import litdata

    def crop(sample: dict) -> tuple:
        return CROP(sample["image"]), sample["label"]

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, transform=crop)
    return sizes(litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=cores))


def streaming_loader(folder: Path, cores: int) -> Iterator[int]:
    """mosaicml-streaming's StreamingDataLoader on its jpeg column (PIL), v2 crop"""
    to_crop = v2.Compose([lambda image: image.convert("RGB"), CROP, v2.PILToTensor()])
    return streamed(folder / "mds_jpeg", to_crop, cores)


def streaming_bytes_loader(folder: Path, cores: int) -> Iterator[int]:
    """the same on a bytes column, decoded by torchvision"""
    return streamed(folder / "mds_bytes", v2.Compose([to_pixels, CROP]), cores)


def dali_loader(folder: Path, cores: int) -> Iterator[int]:
    """NVIDIA DALI's CPU operators, which decode only the region of the crop, a thread per core"""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIClassificationIterator

    @pipeline_def(batch_size=BATCH, num_threads=cores, device_id=None)
    def crops():
        encoded, labels = fn.readers.file(file_root=str(folder / "images"), random_shuffle=True, name="files")
        same_pixels = {"jpeg_fancy_upsampling": True}  # libjpeg's default, so that of all the others
        crop = fn.decoders.image_random_crop(encoded, random_area=AREA, random_aspect_ratio=RATIO, **same_pixels)
        return fn.resize(crop, size=(SIZE, SIZE), interp_type=types.INTERP_CUBIC, antialias=True), labels

    batches = DALIClassificationIterator(crops(), reader_name="files", last_batch_policy=LastBatchPolicy.PARTIAL)
    return sizes((batch["data"], batch["label"]) for (batch,) in batches)


DECODERS = {"torchvision_decode_crop": torchvision_decode_crop}
LOADERS = {
    "torchvision_loader": torchvision_loader,
    "timm_loader": timm_loader,
    "litdata_loader": litdata_loader,
    "streaming_loader": streaming_loader,
    "streaming_bytes_loader": streaming_bytes_loader,
    "dali_loader": dali_loader,
}


def streamed(folder: Path, to_crop: Callable, cores: int) -> Iterator[int]:
    from streaming import StreamingDataLoader, StreamingDataset

    class Crops(StreamingDataset):
        def __getitem__(self, at):
            sample = super().__getitem__(at)
            return to_crop(sample["image"]), sample["label"]

    dataset = Crops(local=str(folder), shuffle=True, batch_size=BATCH)
    return sizes(StreamingDataLoader(dataset, batch_size=BATCH, num_workers=cores))


def sizes(batches: Iterable) -> Iterator[int]:
    """Of the batches, each of which must be what all promise."""
    for images, labels in batches:
        assert images.dtype == torch.uint8 and SIZE * SIZE * 3 * len(labels) == images.numel()
        yield len(labels)


def to_pixels(image: bytes) -> torch.Tensor:
    return decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), ImageReadMode.RGB)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*/*.jpg"))


def sample(path: Path) -> dict:
    """Of an opened JPEG file litdata and streaming store the bytes of the file."""
    return {"image": Image.open(path), "label": int(path.parent.name)}


def convert(folder: Path) -> None:
    import litdata
    from streaming import MDSWriter

    paths = files(folder)
    litdata.optimize(sample, paths, str(folder / "litdata"), chunk_bytes="64MB", num_workers=1, verbose=False)
    with MDSWriter(out=str(folder / "mds_jpeg"), columns={"image": "jpeg", "label": "int"}) as shards:
        for path in paths:
            shards.write(sample(path))
    with MDSWriter(out=str(folder / "mds_bytes"), columns={"image": "bytes", "label": "int"}) as shards:
        for path in paths:
            shards.write({**sample(path), "image": path.read_bytes()})


def rate(name: str, folder: Path, cores: int) -> float:
    """Images per core-second of all but the first quarter, in which workers start.

    Of decoders by CPU time of the thread, of loaders by time times cores.
    """
    counts = (DECODERS | LOADERS)[name](folder, cores)
    clock, cores = (time.thread_time, 1) if name in DECODERS else (time.perf_counter, cores)
    warm, total = len(files(folder)) // 4, 0
    for count in counts:
        total, ended = total + count, clock()
        if total - count < warm <= total:
            first, began = total, ended
    return (total - first) / (ended - began) / cores


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["convert", folder]:
            convert(Path(folder))
            about = {name: peer.__doc__ for name, peer in (DECODERS | LOADERS).items()}
            print(json.dumps({"about": about, "versions": {library: version(library) for library in LIBRARIES}}))
        case [name, folder, cores]:
            print(rate(name, Path(folder), int(cores)))
