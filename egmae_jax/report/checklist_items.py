"""Items of two reporting checklists, and the facts about a run that answer each.

Titles are paraphrased and shortened, numbers are those of the sources:

- CLAIM: Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024
  Update, Radiology: Artificial Intelligence 6(4), 2024.
- TRIPOD+AI: Collins et al., TRIPOD+AI statement, BMJ 385:e078378, 2024.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """An item of a checklist."""

    number: str
    title: str
    facts: str = ""  # names of the facts in `checklist.facts` that answer it, with spaces between
    authors: str = ""  # what only the authors know of an item that facts answer in part


class Checklist(NamedTuple):
    """A reporting checklist."""

    name: str
    source: str
    items: tuple[Item, ...]


CLAIM = Checklist(
    "CLAIM 2024",
    "A. S. Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 "
    "Update, Radiology: Artificial Intelligence, 2024",
    (
        Item("1", "Title or abstract: a study of AI, and the kind of technology", "kind"),
        Item("2", "Abstract: design, methods, results and conclusions"),
        Item("3", "Background, and intended use and role of the AI"),
        Item("4", "Aims, objectives and hypotheses"),
        Item("5", "Prospective or retrospective design"),
        Item("6", "Goal of the study"),
        Item("7", "Data sources", "data", "institutions and dates of acquisition"),
        Item("8", "Inclusion and exclusion criteria", "excluded", "clinical criteria"),
        Item("9", "Preprocessing of the data", "preprocessing", "earlier processing"),
        Item("10", "Selection of subsets of the data", "subset"),
        Item("11", "De-identification"),
        Item("12", "Handling of missing data", "unreadable", "missing labels and clinical data"),
        Item("13", "Image acquisition protocol"),
        Item("14", "How the reference standard was obtained"),
        Item("15", "Why this reference standard was chosen"),
        Item("16", "Source of the annotations, qualification of the annotators"),
        Item("17", "Annotation of the test set"),
        Item("18", "Variability between and within annotators"),
        Item("19", "Assignment of the data to partitions", "partitions"),
        Item("20", "Level at which the partitions are disjoint", "protocol leaks"),
        Item("21", "Intended size of the test sample", "tested", "how the size was chosen"),
        Item("22", "Detailed description of the model", "model output"),
        Item("23", "Software, with versions", "software"),
        Item("24", "Initialization of the parameters", "initial"),
        Item("25", "Training: augmentation, hyperparameters, number of models", "training rounds"),
        Item("26", "Selection of the final model", "selection"),
        Item("27", "Ensembling", "ensemble"),
        Item("28", "Metrics of performance", "metrics", "why they suit the clinical task"),
        Item("29", "Statistical significance and uncertainty", "uncertainty"),
        Item("30", "Robustness or sensitivity analysis", "spread", "further analyses"),
        Item("31", "Explainability or interpretability", "explained"),
        Item("32", "Evaluation on internal data", "internal"),
        Item("33", "Testing on external data"),
        Item("34", "Registration of a clinical trial"),
        Item("35", "Numbers included and excluded", "numbers excluded", "patients, flow diagram"),
        Item("36", "Characteristics of the cases in each partition", "numbers", "demographics"),
        Item("37", "Performance, with its uncertainty", "performance tests"),
        Item("38", "Diagnostic performance and its precision", "points calibration"),
        Item("39", "Failure analysis of wrong results", "failures", "clinical interpretation"),
        Item("40", "Limitations", "warnings", "limitations of the study"),
        Item("41", "Implications for practice, intended use"),
        Item("42", "Where the full protocol or technical details are", "record", "the reference"),
        Item("43", "Availability of software, model and data", "record", "where they are"),
        Item("44", "Funding, and the role of the funders"),
    ),
)

TRIPOD = Checklist(
    "TRIPOD+AI",
    "G. S. Collins et al., TRIPOD+AI statement: updated guidance for reporting clinical prediction "
    "models that use regression or machine learning methods, BMJ 385:e078378, 2024",
    (
        Item("1", "Title: development or evaluation, population and outcome", "kind", "population"),
        Item("2", "Abstract, by TRIPOD+AI for Abstracts"),
        Item("3a", "Healthcare context and rationale"),
        Item("3b", "Target population, purpose and intended users"),
        Item("3c", "Known health inequalities between groups"),
        Item("4", "Objectives"),
        Item("5a", "Sources of the data", "data", "why they were chosen, representativeness"),
        Item("5b", "Dates of the data"),
        Item("6a", "Setting, number and location of centres"),
        Item("6b", "Eligibility criteria", "excluded", "clinical criteria"),
        Item("6c", "Treatments received"),
        Item("7", "Data preparation and quality checks", "preprocessing audit"),
        Item("8a", "Definition and assessment of the outcome", "classes", "how it was assessed"),
        Item("8b", "Assessors of the outcome"),
        Item("8c", "Blinding of the assessment of the outcome"),
        Item("9a", "Choice of the initial predictors", "predictors", "why"),
        Item("9b", "Definition and measurement of the predictors", "predictors", "acquisition"),
        Item("9c", "Assessors of the predictors", "unassessed"),
        Item("10", "How the sample size was chosen", "numbers", "whether it is sufficient"),
        Item("11", "Missing data", "unreadable", "missing labels and clinical data"),
        Item("12a", "Use of the data for development and evaluation", "partitions protocol"),
        Item("12b", "Handling of the predictors", "preprocessing"),
        Item("12c", "Type of model, building, internal validation", "model training selection"),
        Item("12d", "Heterogeneity between clusters, such as hospitals"),
        Item("12e", "Measures and plots of performance", "metrics uncertainty"),
        Item("12f", "Updating of the model after evaluation"),
        Item("12g", "How predictions were calculated for evaluation", "output ensemble"),
        Item("13", "Class imbalance", "imbalance"),
        Item("14", "Fairness"),
        Item("15", "Output of the model, and thresholds", "output thresholds"),
        Item("16", "Differences between development and evaluation data", "internal"),
        Item("17", "Ethical approval"),
        Item("18a", "Funding"),
        Item("18b", "Conflicts of interest"),
        Item("18c", "Protocol"),
        Item("18d", "Registration"),
        Item("18e", "Data sharing", "data", "availability"),
        Item("18f", "Code sharing", "software record", "where the code is available"),
        Item("19", "Patient and public involvement"),
        Item("20a", "Flow of participants", "numbers excluded", "participants"),
        Item("20b", "Characteristics of the participants", "numbers", "demographics"),
        Item("20c", "Comparison of development and evaluation data", "numbers", "key predictors"),
        Item("21", "Numbers of participants and outcomes in each analysis", "numbers tested"),
        Item("22", "Full specification of the model", "model record"),
        Item("23a", "Performance with intervals", "performance points calibration", "subgroups"),
        Item("23b", "Heterogeneity of performance between clusters"),
        Item("24", "Results of updating the model"),
        Item("25", "Interpretation, including fairness"),
        Item("26", "Limitations", "warnings", "limitations of the study"),
        Item("27a", "Handling of poor or unavailable input", "unreadable", "in clinical use"),
        Item("27b", "Interaction and expertise that users need"),
        Item("27c", "Next steps of research"),
    ),
)
