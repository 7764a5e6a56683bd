/** A small deterministic generator of numbers in 0..1: a linear congruential one (Knuth's MMIX), its upper bits. */
export function randoms(seed: number): () => number {
  let state = BigInt(seed)
  return () => {
    state = (state * 6_364_136_223_846_793_005n + 1_442_695_040_888_963_407n) % 2n ** 64n
    return Number(state >> 40n) / 2 ** 24
  }
}
