import { LADDER, type Precision } from '../../engine/config/index.js'

/** A precision as clients ask for it: a rung's name, or a place on whatever ladder the model has. */
export type PrecisionWish = Precision | 'high' | 'medium' | 'low'

/** Everything a client may write. */
export const PRECISION_WISHES = ['high', 'medium', 'low', ...LADDER] as const

const RANKS = new Map(LADDER.map((precision, rank) => [precision, rank]))

/** Place in the order of precisions, 0 = best. */
export function rankOf(precision: Precision): number {
  return RANKS.get(precision) ?? LADDER.length
}

/**
 * The precision that a wish means on a ladder (best first, not empty): `high` and `low` are its ends, `medium` is int8,
 * or the middle of a ladder without it. A rung's name means itself, whether the ladder has it or not.
 */
export function resolveWish(wish: PrecisionWish, ladder: readonly { precision: Precision }[]): Precision {
  const has = (index: number): Precision => ladder[index]?.precision ?? 'int8'
  if (wish === 'high') return has(0)
  if (wish === 'low') return has(ladder.length - 1)
  if (wish !== 'medium') return wish
  return ladder.some(({ precision }) => precision === 'int8') ? 'int8' : has(Math.floor((ladder.length - 1) / 2))
}
