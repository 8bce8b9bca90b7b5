// The two elements of a rotated pair. What is fused is said, so that every shader that rotates has the same bits.
fn rotated_first(first: Element, second: Element, cosine: Element, sine: Element) -> Element {
    return fma(first, cosine, -(second * sine));
}

fn rotated_second(first: Element, second: Element, cosine: Element, sine: Element) -> Element {
    return fma(second, cosine, first * sine);
}
