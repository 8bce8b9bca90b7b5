// What one thread reads at once: four floats where rows are a multiple of four long (VECTOR), else one.
#if VECTOR
alias Element = vec4<f32>;

fn sum_of(element: Element) -> f32 {
    return (element.x + element.y) + (element.z + element.w);
}

fn product_sum(a: Element, b: Element, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}
#else
alias Element = f32;

fn sum_of(element: Element) -> f32 {
    return element;
}

fn product_sum(a: Element, b: Element, sum: f32) -> f32 {
    return fma(a, b, sum);
}
#end

