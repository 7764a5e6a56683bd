/** Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`. */
function editDistance(a: string, b: string): number {
  let before: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1]
      let cost = Math.min((row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1, (row[j - 1] ?? 0) + (same ? 0 : 1))
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]
      if (swapped) cost = Math.min(cost, (before[j - 2] ?? 0) + 1)
      next.push(cost)
    }
    before = row
    row = next
  }
  return row[b.length] ?? 0
}

/** The candidate that `word` was most likely meant to be, if one is near enough to be worth naming. */
export function nearest(word: string, candidates: readonly string[]): string | undefined {
  if (word.length > 100) return undefined
  const normal = word.toLowerCase().replaceAll('-', '_')
  const ranked = candidates
    .map((candidate) => ({ candidate, distance: editDistance(normal, candidate.toLowerCase()) }))
    .toSorted((x, y) => x.distance - y.distance)
  const best = ranked[0]
  return best !== undefined && best.distance <= Math.max(2, Math.ceil(word.length / 3)) ? best.candidate : undefined
}
