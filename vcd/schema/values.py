"""Kinds of values, each with the words that say what it must be."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, StrictInt, StrictStr, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError

MANY = 10_000_000  # of anything that is counted
DEEP = 100_000  # levels
WIDE = 16_384  # channels and pixels
FEW = 1024  # processes, blocks, ...


def be(words: str) -> WrapValidator:
    """Annotates a type: what is not of it "must be <words>". Interpolations are checked where their value is set."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        if isinstance(value, str) and "${" in value:
            return value
        try:
            return handler(value)
        except ValidationError as error:
            raise PydanticCustomError("value", "it must be {words}", {"words": words}) from error

    return WrapValidator(check)


def _between(least: int, most: int) -> WrapValidator:
    return be(f"a whole number of at least {least}, and at most {most}")


Count = Annotated[int, Field(strict=True, ge=1, le=MANY), _between(1, MANY)]
CountOrZero = Annotated[int, Field(strict=True, ge=0, le=MANY), _between(0, MANY)]
Threads = Annotated[
    int | None, Field(strict=True, ge=1, le=FEW), be("a whole number of at least 1, or null for all cores")
]
Few = Annotated[int, Field(strict=True, ge=1, le=FEW), _between(1, FEW)]
Width = Annotated[int, Field(strict=True, ge=1, le=WIDE), _between(1, WIDE)]
Levels = Annotated[int, Field(strict=True, ge=1, le=DEEP), _between(1, DEEP)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32), _between(0, 2**32 - 1)]
Steps = Annotated[int, Field(strict=True, ge=1), be("a whole number of at least 1")]
CountOrAll = Annotated[int, Field(strict=True, ge=-1), be("a whole number of at least 0, or -1 for all")]

Finite = Annotated[float, Field(strict=True, allow_inf_nan=False), be("a finite number")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), be("a finite number greater than 0")]
NotNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), be("a finite number of at least 0")]
AtLeastOne = Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False), be("a finite number of at least 1")]
Share = Annotated[float, Field(strict=True, ge=0, le=1), be("a number from 0 to 1")]
BelowOne = Annotated[float, Field(strict=True, ge=0, lt=1), be("a number of at least 0 and below 1")]
Fraction = Annotated[float, Field(strict=True, gt=0, lt=1), be("a number greater than 0 and below 1")]
Region = Annotated[
    Annotated[list[Share], Field(min_length=4, max_length=4)], be("[top,left,bottom,right], numbers from 0 to 1")
]
Numbers = Annotated[
    NotNegative | Annotated[list[NotNegative], Field(min_length=1)],
    be("finite numbers of at least 0, such as [0,0.5,1]"),
]

Flag = Annotated[bool, Field(strict=True), be("true or false")]
Place = Annotated[StrictStr | StrictInt, be("a path")]
File = Annotated[StrictStr, be("a path (a number in quotes: '\"3\"')")]
Places = Annotated[StrictStr | StrictInt | list[StrictStr | StrictInt], be("a path, or a list of paths")]
Name = Annotated[StrictStr, be("a name")]
Names = Annotated[StrictStr | list[StrictStr], be("a name, or a list of names")]
Overrides = Annotated[list[StrictStr], be("a list of key=value, each in quotes")]
Variants = Annotated[dict[str, list[StrictStr]], be("{name: [key=value, ...], ...}")]
Split = Annotated[Literal["train", "val"], be("train or val")]
Format = Annotated[Literal["safetensors", "diffusers"], be("safetensors or diffusers")]
Repository = Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$"), be("user/name")]
Padding = Annotated[Literal["circular", "reflect"], be("circular or reflect")]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$"), be("auto, cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    Annotated[int, Field(strict=True, ge=1, le=FEW)]
    | Literal["auto", -1]
    | Annotated[list[Annotated[int, Field(strict=True, ge=0)]], Field(min_length=1)],
    be("a number of devices, a list of their indices, such as [0,1], or auto"),
]
Accelerator = Annotated[
    Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"], be("one of auto, cpu, gpu, cuda, mps and tpu")
]
Precision = Annotated[
    Literal["32-true", "64-true", "bf16-mixed", "auto"],
    be("one of 32-true, 64-true, bf16-mixed and auto; float16 is not supported"),
]
Range = Annotated[
    Annotated[int, Field(strict=True, ge=1)]
    | Annotated[list[Annotated[int, Field(strict=True, ge=1)]], Field(min_length=2, max_length=2)],
    be("a level, such as 4, two of them, such as [2,5], or null"),
]
Labels = Annotated[
    CountOrZero | Annotated[list[CountOrZero], Field(min_length=1)],
    be("a class, such as 3, or several, such as [0,1,2]"),
]
Multiples = Annotated[list[Positive], Field(min_length=1), be("a list of finite numbers greater than 0, such as [1,2]")]
Resolutions = Annotated[list[CountOrZero], be("a list of resolutions, such as [1]; 0 is the finest")]
Exponents = Annotated[
    list[Annotated[int, Field(strict=True, ge=0, le=16)]], be("a list of whole numbers from 0 to 16, such as [5,6]")
]
Backend = Annotated[bool | str, be("true, false or the name of a backend")]
Betas = Annotated[
    list[BelowOne], Field(min_length=2, max_length=2), be("two numbers of at least 0 and below 1, such as [0.9,0.99]")
]
