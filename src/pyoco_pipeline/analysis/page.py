"""The noise analysis as one HTML file that needs nothing but itself, no network, no script."""

from __future__ import annotations

from pyoco_pipeline.analysis.analyse import DATA, NoiseAnalysis
from pyoco_pipeline.reporting.html_parts import facts, figure, number, page, section, table, text

_TITLE = "Noise analysis"


def render_page(analysis: NoiseAnalysis) -> str:
    """The page: text is escaped, figures are inside."""
    body = "".join(
        (_found(analysis), _correlation(analysis), _alpha(analysis), _clusters(analysis), _gaussian(analysis))
    )
    return page(_TITLE, body)


def _found(analysis: NoiseAnalysis) -> str:
    source, lead = analysis.source, analysis.lead()
    names = list(analysis.scores)
    verdict = (
        f"The {analysis.best} prior makes clips that it was not fitted to most likely, {lead:.1f} standard errors "
        f"ahead of {names[1]}"
        + ("." if lead >= 2 else ": too little to tell the two apart with so many clips.")
    )
    rows = [
        [
            text(name),
            number(score.log_likelihood),
            number(score.behind),
            number(score.standard_error),
        ]
        for name, score in analysis.scores.items()
    ]
    head = ("prior", "log-likelihood", "behind the best", "standard error")
    body = f"<p><strong>{text(verdict)}</strong></p>" + table(head, rows, numeric=(1, 2, 3))
    body += figure(analysis.figures["families"], "Log-likelihood of left-out clips by family", 640)
    body += f"<h3>To paste into conf/</h3><pre>{text(analysis.snippet())}</pre>"
    body += "<h3>How the maps were made</h3>" + facts(
        {
            "clips": len(source.clip_ids),
            "frames of a clip": source.maps.shape[1],
            "text": source.text,
            "Heun steps": source.steps,
            "sigma": f"0 to {source.sigma_max:g}",
            "lost in a round trip": f"{source.round_trip_error:.2%} of the clips' standard deviation, "
            f"at worst {source.round_trip_worst:.1%}",
        }
    )
    lead_in = (
        "Frames of clips, inverted one by one by the image model. Log-likelihoods are nats per pixel of a clip, and "
        "each clip's is by the priors fitted to the others."
    )
    return section("found", "Which prior", body, lead_in)


def _correlation(analysis: NoiseAnalysis) -> str:
    measured = analysis.correlation
    head = ("distance of frames", "correlation", "± standard error", "product, same clip", "different clips")
    columns = zip(
        measured.correlation,
        measured.correlation_error,
        measured.within,
        measured.across,
        strict=True,
    )
    rows = [[str(lag), *(number(float(v)) for v in values)] for lag, values in enumerate(columns)]
    picture = figure(analysis.figures["correlation"], "Correlation against distance of frames", 860)
    lead = (
        "Maps of an inexact model have a mean in common, which would pass for correlation: the mean product of frames "
        "of different clips is taken off that of frames of one clip."
    )
    return section("correlation", "Correlation", picture + table(head, rows, numeric=range(5)), lead)


def _alpha(analysis: NoiseAnalysis) -> str:
    rows = []
    for name, fit in analysis.fits.items():
        intervals = [f"{low:.4g} to {high:.4g}" for low, high in (fit.interval, fit.naive_interval)]
        rows.append([text(name), number(fit.alpha), *intervals, number(fit.scale)])
    head = ("family", "α", "interval, clips resampled", "naive: pixels independent", "variance beside it")
    body = table(head, rows, numeric=(1, 2, 3, 4))
    body += figure(analysis.figures["alpha"], "Profile likelihood of α", 920)
    lead = (
        f"Maximum likelihood, with intervals of confidence {analysis.settings.confidence:g}. The variance is free in "
        "the fit: a prior's is 1."
    )
    return section("alpha", "α", body, lead)


def _clusters(analysis: NoiseAnalysis) -> str:
    rows = [
        [
            "noise maps of the clips" if name == DATA else text(name),
            f"{number(found.distance_ratio)} ± {number(found.standard_error)}",
            f"{found.same_clip:.1%}",
            f"{found.chance:.1%}",
        ]
        for name, found in analysis.clustering.items()
    ]
    head = ("maps", "squared distance, same clip / others", "nearest neighbour in the same clip", "by chance")
    drawn = analysis.figures
    body = table(head, rows, numeric=(1, 2, 3))
    body += "<h3>t-SNE</h3>" + figure(drawn["tsne"], "t-SNE of noise maps, a colour per clip", 1180)
    body += "<h3>Principal components</h3>" + figure(drawn["pca"], "PCA of noise maps", 1180)
    lead = "A colour for each clip, its frames joined in order; grey points are independent noise."
    return section("clusters", "Clusters", body, lead)


def _gaussian(analysis: NoiseAnalysis) -> str:
    found = analysis.gaussianity
    moments = ("mean", "variance", "skewness", "kurtosis")
    rows = [
        [
            name if name != "kurtosis" else "excess kurtosis",
            number(getattr(found, name).value),
            number(getattr(found, name).standard_error),
            "1" if name == "variance" else "0",
        ]
        for name in moments
    ]
    body = table(("", "value", "standard error", "of N(0, 1)"), rows, numeric=(1, 2, 3))
    verdict = "more" if found.ks > found.ks_critical else "no more"
    body += (
        f"<p>Kolmogorov-Smirnov statistic against N(0, 1): {number(found.ks)}, {verdict} than "
        f"{number(found.ks_critical)}, which {number(round(found.effective_samples))} independent values exceed in 5% "
        f"of cases; so many are worth as much as these {number(found.values)} values, by how clips differ.</p>"
    )
    body += figure(analysis.figures["values"], "Distribution of the values of noise maps", 920)
    lead = "An exact model of the clips would give maps of N(0, 1). The fits above use second moments alone."
    return section("gaussian", "Are the maps Gaussian?", body, lead)
