"""Measures of similarity over streams: the samples pass in batches, and only sums over them are kept.

Every accumulator is a frozen pytree with the same steps, each of which returns a new one:

    init      an empty stream, the identity of `merge`
    update    add a batch of samples
    merge     join two streams over different samples; associative up to rounding
    finish    the result, or what a second pass over the samples begins with

What is accumulated, and what it finishes to::

    CKA, few units      UnitProducts -> CKA, or, in a second pass,  ProductTerms -> HsicTerms -> CKA with intervals
    CKA, many units     GramTerms, of blocks of the Gram matrices                -> HsicTerms -> CKA with intervals
    CCA, SVCCA, PWCCA   QRFactor of each layer -> Basis, in a second pass,  WhitenedProducts -> mean correlation

CKA of two layers with 64 and 10 units, and the mean canonical correlation::

    products = streaming.UnitProducts.init((64,), (10,))
    for x, y in batches:
        products = products.update([x], [y])
    cka = products.finish()  # (1, 1)

    factors = [streaming.QRFactor.init(units) for units in (64, 10)]
    for batch in batches:
        factors = [factor.update(x) for factor, x in zip(factors, batch)]
    products = streaming.WhitenedProducts.init(*([factor.finish(standardize=True)] for factor in factors))
    for x, y in batches:
        products = products.update([x], [y])
    cca = products.finish("cca")  # (1, 1)

Layers come as sequences, one array of samples in rows per layer, so that many layers of two networks are compared in
one pass: every result has an axis for the layers of the first and one for those of the second. Rows for which
``counted`` is False are left out, whatever they hold. Sums are taken about a point among the samples, and brought to
a common one where streams are merged (Chan, Golub and LeVeque 1983), so that large means cost no digits.
"""

from stabjax.similarity._bases import Basis
from stabjax.similarity.streaming._canonical import Canonical, QRFactor, WhitenedProducts
from stabjax.similarity.streaming._gram_terms import GramTerms
from stabjax.similarity.streaming._hsic import HsicTerms
from stabjax.similarity.streaming._product_terms import ProductTerms
from stabjax.similarity.streaming._products import UnitProducts

__all__ = [
    "Basis",
    "Canonical",
    "GramTerms",
    "HsicTerms",
    "ProductTerms",
    "QRFactor",
    "UnitProducts",
    "WhitenedProducts",
]
