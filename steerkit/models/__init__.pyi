# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.models._architecture import (
    Architecture as Architecture,
    Heads as Heads,
    Images as Images,
    Inputs as Inputs,
    VisionTower as VisionTower,
)
from steerkit.models._asking import architecture_of as architecture_of, start_token as start_token
from steerkit.models._chat import IMAGE as IMAGE
from steerkit.models._dates import dated as dated
from steerkit.models._download import download_image as download_image
from steerkit.models._family import Family as Family
from steerkit.models._format import PromptFormat as PromptFormat
from steerkit.models._generation import (
    check_one_answer as check_one_answer,
    check_room as check_room,
    generation_settings as generation_settings,
)
from steerkit.models._identity import (
    check_processor as check_processor,
    hugging_face as hugging_face,
    model_record as model_record,
    unwrapped as unwrapped,
    vocabulary_digest as vocabulary_digest,
    weights_digest as weights_digest,
)
from steerkit.models._images import (
    check_image as check_image,
    image_name as image_name,
    open_image as open_image,
    web_address as web_address,
)
from steerkit.models._loading import check_dtype as check_dtype, commit_of as commit_of, family_of as family_of
from steerkit.models._modalities import (
    audio_tokens as audio_tokens,
    check_beside as check_beside,
    is_shown as is_shown,
    video_tokens as video_tokens,
    visual_positions as visual_positions,
    visual_rows as visual_rows,
)
from steerkit.models._preparing import (
    Prepared as Prepared,
    all_prepared as all_prepared,
    answer_lengths as answer_lengths,
    batched as batched,
    check_begun as check_begun,
    named as named,
    numbered_from as numbered_from,
    numbers as numbers,
    prepare as prepare,
)
from steerkit.models._processors import (
    NoVideo as NoVideo,
    load_processor as load_processor,
    tokenizer_of as tokenizer_of,
    unshared as unshared,
    waiving_video as waiving_video,
)
from steerkit.models._protocols import (
    AnsweringModel as AnsweringModel,
    LoadedModel as LoadedModel,
    SteerableModel as SteerableModel,
)
from steerkit.models._reading import read_samples as read_samples
from steerkit.models._registry import (
    adapter_names as adapter_names,
    family_for as family_for,
    get_adapter as get_adapter,
    may_see as may_see,
    model_types as model_types,
    seeing as seeing,
)
from steerkit.models._rendering import hides_images as hides_images, prompt_of as prompt_of, shown as shown
from steerkit.models._sample_files import (
    is_separated as is_separated,
    sound_rows as sound_rows,
    unit_of as unit_of,
)
from steerkit.models._samples import Sample as Sample, anchor_digest as anchor_digest, as_samples as as_samples
from steerkit.models._stored import Stored as Stored
from steerkit.models._streams import merged as merged, spread as spread
from steerkit.models._tested import as_tested as as_tested, tested as tested
from steerkit.models._views import (
    decode as decode,
    encode as encode,
    meaningless_image as meaningless_image,
    system_lengths as system_lengths,
    view as view,
)
