"""Forms of scaling laws, one class each."""

from llmtrain.scaling.forms.base import Form
from llmtrain.scaling.forms.chinchilla import Chinchilla
from llmtrain.scaling.forms.clark import Clark
from llmtrain.scaling.forms.data_constrained import DataConstrained
from llmtrain.scaling.forms.gadre import Gadre
from llmtrain.scaling.forms.power import PowerLaw

FORMS: dict[str, Form] = {f.name: f for f in (Chinchilla(), PowerLaw(), Gadre(), Clark(), DataConstrained())}
