/** What models.yaml says of a ladder, completed and checked by what its files say. Pure but for `cardOf`. */
import type { ModelConfig, VariantConfig } from '../config/index.js'
import type { Precision } from '../native.js'
import { type ModelCard, storageMethod } from '../registry/index.js'

const LADDER: readonly Precision[] = ['fp16', 'int8', 'int4']

/** A rung with its precision known, and its files' card or why there is none. */
export interface Rung {
  /** "model:precision". */
  name: string
  model: string
  precision: Precision
  card: ModelCard | Error
}

/**
 * The rungs of a model in the order of the file. An unstated precision is the one the files are stored in; one that
 * is taken already, or stands below a worse rung, makes the rung an error under a name that is still free.
 */
export function readRungs(model: ModelConfig, cardOf: (path: string) => ModelCard | Error): Rung[] {
  const stated = new Set(model.variants.flatMap(({ precision }) => precision ?? []))
  const taken = new Set(stated)
  let worst = 0
  return model.variants.map((variant) => {
    const card = cardOfRung(model, variant, cardOf)
    const read = variant.precision ?? (card instanceof Error ? undefined : card.precision)
    const free = LADDER.find((precision) => !taken.has(precision)) ?? 'int4'
    const fault = card instanceof Error ? card : contradiction(variant, card)
    const misplaced = variant.precision === undefined && read !== undefined && misplacedAs(read, taken, worst)
    const precision = read === undefined || misplaced ? free : read
    taken.add(precision)
    if (!misplaced && read !== undefined) worst = Math.max(worst, LADDER.indexOf(precision))
    const failure = fault ?? (misplaced ? new Error(`${variant.path}: ${misplaced}`) : undefined)
    return { name: `${model.id}:${precision}`, model: model.id, precision, card: failure ?? card }
  })
}

/** Of a rung's own file, or of the one that it is derived from. */
function cardOfRung(
  { variants }: ModelConfig,
  { path, from }: VariantConfig,
  cardOf: (path: string) => ModelCard | Error,
): ModelCard | Error {
  if (from === undefined || variants.some(({ precision }) => precision === from)) return cardOf(path)
  const sources = variants.filter((other) => other.precision === undefined).map((other) => cardOf(other.path))
  const source = sources.find((card) => !(card instanceof Error) && card.precision === from)
  return (
    source ?? sources.find((card) => card instanceof Error) ?? new Error(`no file of the ladder holds ${from} weights`)
  )
}

function misplacedAs(precision: Precision, taken: ReadonlySet<Precision>, worst: number): string | undefined {
  if (taken.has(precision)) return `holds ${precision} weights, and the ladder has an ${precision} rung already`
  if (LADDER.indexOf(precision) >= worst) return undefined
  return `holds ${precision} weights and stands below a worse rung; the best precision comes first`
}

/** Why the files are not what the configuration says they are. */
function contradiction({ path, precision, format, family }: VariantConfig, card: ModelCard): Error | undefined {
  const wrong = (what: string, stated: string, found: string) =>
    new Error(`${path}: models.yaml says ${what} ${stated}; the files say ${found}`)
  const method = storageMethod(card)
  if (format !== undefined && format !== card.format && format !== method) return wrong('format', format, method)
  if (family !== undefined && family !== card.architecture) return wrong('family', family, card.architecture)
  // From 4-bit weights int8 takes more memory and is no better; fp16 is the form that other tools compute in.
  if (precision === 'int8' && card.precision === 'int4' && card.format === 'safetensors')
    return wrong('precision', precision, card.precision)
  return undefined
}
