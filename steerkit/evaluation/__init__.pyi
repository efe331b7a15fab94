# The names that are offered here, and where each lives; `_internal.lazy` reads this list as well as type checkers.

from steerkit.evaluation._agreement import (
    Agreement as Agreement,
    Check as Check,
    Opinion as Opinion,
    judge_check as judge_check,
    opinions as opinions,
    side_by_side as side_by_side,
)
from steerkit.evaluation._calibrate import Calibration as Calibration, calibrate as calibrate
from steerkit.evaluation._calibrate_gate import calibrate_gate as calibrate_gate
from steerkit.evaluation._cases import Case as Case
from steerkit.evaluation._compare import (
    Comparison as Comparison,
    Entry as Entry,
    Point as Point,
    Row as Row,
    compare as compare,
)
from steerkit.evaluation._controls import random_like as random_like
from steerkit.evaluation._datasets import DATASETS as DATASETS, Dataset as Dataset, Part as Part
from steerkit.evaluation._disjoint import check_disjoint as check_disjoint, split as split
from steerkit.evaluation._evaluate import ANSWERS as ANSWERS, VERDICTS as VERDICTS, evaluate as evaluate
from steerkit.evaluation._formats import (
    LLAMA_GUARD as LLAMA_GUARD,
    LLAMA_GUARD_VISION as LLAMA_GUARD_VISION,
    LLAVA_BENCH as LLAVA_BENCH,
    PLAIN as PLAIN,
    WILDGUARD as WILDGUARD,
    Format as Format,
    read_guard as read_guard,
    read_rating as read_rating,
    read_rubric as read_rubric,
    read_scores as read_scores,
    read_three_lines as read_three_lines,
    read_yes_or_no as read_yes_or_no,
    relative_score as relative_score,
)
from steerkit.evaluation._generate import (
    Condition as Condition,
    Work as Work,
    Workers as Workers,
    answered as answered,
    batches as batches,
    generate as generate,
    steered as steered,
)
from steerkit.evaluation._journal import Journal as Journal, read_records as read_records
from steerkit.evaluation._judges import (
    Judge as Judge,
    Judgement as Judgement,
    KeyedJudge as KeyedJudge,
    PhraseJudge as PhraseJudge,
)
from steerkit.evaluation._judging import judge as judge, surprise as surprise
from steerkit.evaluation._kl import equal_kl as equal_kl, per_layer as per_layer
from steerkit.evaluation._methods_file import MethodSettings as MethodSettings, read_methods as read_methods
from steerkit.evaluation._model_judges import EndpointJudge as EndpointJudge, LocalJudge as LocalJudge
from steerkit.evaluation._outcome import Judged as Judged, Outcome as Outcome, tabulate as tabulate
from steerkit.evaluation._paired import Paired as Paired, Power as Power
from steerkit.evaluation._questions import Parser as Parser, states as states
from steerkit.evaluation._records import Answer as Answer, Kind as Kind, Verdict as Verdict
from steerkit.evaluation._search import Budget as Budget
from steerkit.evaluation._states import Plane as Plane, planes as planes
from steerkit.evaluation._statistics import (
    Estimate as Estimate,
    bootstrap as bootstrap,
    holm as holm,
    kappa as kappa,
    mcnemar as mcnemar,
    power as power,
    rate as rate,
    sign_test as sign_test,
    zero_allows as zero_allows,
)
from steerkit.evaluation._study import study as study
from steerkit.evaluation._study_found import Cell as Cell, Study as Study
from steerkit.evaluation._suite_files import load_suite as load_suite
from steerkit.evaluation._suites import KINDS as KINDS, Suite as Suite
from steerkit.evaluation._text import (
    REFUSALS as REFUSALS,
    WINDOW as WINDOW,
    folded as folded,
    is_garbled as is_garbled,
    is_refusal as is_refusal,
    refusal_at as refusal_at,
    words as words,
)
