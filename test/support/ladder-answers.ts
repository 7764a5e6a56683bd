/**
 * What an answer must be, computed without a gateway: on one rung, or on one after the other. On a GPU a text may part
 * from that at near ties.
 */
import { loadAddon } from '../../engine/addon.js'
import { modelAssets, readModelCard } from '../../engine/registry/index.js'
import { loadTextModel } from '../../gateway/text/model-text.js'
import type { TextModel } from '../../gateway/text/types.js'
import type { Job } from './any-protocol.js'
import { type InProcessEngine, engineInProcess } from './engine-in-process.js'
import { neutralSampling } from './fake-engine.js'
import { tokenAtTie } from './near-ties.js'
import { SMOLLM2_FILE } from './smollm2.js'
import { shippedKind, testDevice } from './test-device.js'

/** A rung ("model:precision") and how many tokens of the answer were there when it began. */
export interface Segment {
  variant: string
  from: number
  /** The first token is the other one of a near tie. */
  tie?: true
}

/** Near ties that one text may have. */
const MOST_TIES = 3
/** Last tokens of what two texts have in common that may be where they part: one may hide in the bytes of another. */
const PARTING = 3

/** Owns an engine with the ladder of the embedded model: `close` it. */
export class LadderAnswers {
  /** Texts that `gives` found to part at near ties. */
  parted = 0
  private readonly known = new Map<string, Promise<number[]>>()

  private constructor(
    private readonly kind: 'cpu' | 'cuda',
    private readonly box: InProcessEngine,
    private readonly text: TextModel,
  ) {}

  /** On a device of a kind; default: as the shipped configuration uses. */
  static async open(kind = shippedKind()): Promise<LadderAnswers> {
    const path = JSON.stringify(SMOLLM2_FILE)
    const { yaml } = testDevice({ cpu: 2, cuda: 4 }, kind)
    const box = engineInProcess(`
devices: [${yaml}]
models:
  - id: smollm2
    variants: [{ precision: fp16, path: ${path} }, { precision: int8, from: fp16 }, { precision: int4, from: fp16 }]
`)
    const card = readModelCard(SMOLLM2_FILE, (file) => loadAddon().readGguf(file))
    const text = await loadTextModel(modelAssets(card), 0)
    await box.settled()
    return new LadderAnswers(kind, box, text)
  }

  /** The text of a job whose answer began on the first segment's rung and went on by the others. */
  async textOf(job: Job, segments: readonly Segment[]): Promise<string> {
    return this.text.decode(await this.idsOf(job, segments), true)
  }

  /** Whether a job's text is what these segments give; on a GPU also where it parts from that at near ties. */
  async gives(job: Job, segments: readonly Segment[], text: string): Promise<boolean> {
    if ((await this.textOf(job, segments)) === text) return true
    if (this.kind === 'cpu' || !(await this.partsAtTies(job, segments, text, MOST_TIES))) return false
    this.parted++
    return true
  }

  /** The numbers of tokens, from the last segment on, after which the answer's text is a beginning of `text`. */
  async beginnings(job: Job, segments: readonly Segment[], text: string): Promise<number[]> {
    return this.common(await this.idsOf(job, segments), segments.at(-1)?.from ?? 0, text)
  }

  async close(): Promise<void> {
    await this.box.close()
    await this.text.close()
  }

  /** The numbers of tokens, from `first` on, after which these tokens' text is a beginning of `text`. */
  private common(ids: readonly number[], first: number, text: string): number[] {
    const counts = Array.from({ length: ids.length - first }, (_, i) => first + i)
    // A character may be half told there.
    const told = (count: number): string => this.text.decode(ids.slice(0, count), true).replace(/\uFFFD+$/, '')
    return counts.filter((count) => text.startsWith(told(count)))
  }

  private async partsAtTies(job: Job, segments: readonly Segment[], text: string, ties: number): Promise<boolean> {
    const ids = await this.idsOf(job, segments)
    const places = this.common(ids, 0, text).slice(-PARTING)
    // The longest common beginning first.
    for (const from of places.toReversed()) {
      const earlier = segments.filter((segment) => segment.from <= from)
      const variant = earlier.at(-1)?.variant ?? ''
      const other = [...earlier, { variant, from, tie: true as const }, ...segments.slice(earlier.length)]
      if ((await this.idsOf(job, other))[from] === ids[from]) continue
      if ((await this.textOf(job, other)) === text) return true
      if (ties > 1 && (await this.partsAtTies(job, other, text, ties - 1))) return true
    }
    return false
  }

  private idsOf(job: Job, segments: readonly Segment[]): Promise<number[]> {
    const key = JSON.stringify([job, segments])
    const ids = this.known.get(key) ?? this.generate(job, segments)
    this.known.set(key, ids)
    return ids
  }

  private async generate(job: Job, segments: readonly Segment[]): Promise<number[]> {
    const last = segments.at(-1)
    if (!last) return []
    const { variant } = last
    const earlier = await this.idsOf(job, segments.slice(0, -1))
    const before = earlier.slice(0, last.from)
    const prompt = await this.text.encodeChat([{ role: 'user', content: job.content }], '')
    const sampling = neutralSampling({
      temperature: job.temperature,
      seed: job.seed,
      frequencyPenalty: job.frequency_penalty,
    })
    const regex = job.guided_regex
    const grammar = regex === undefined ? undefined : { kind: { $case: 'regex' as const, regex } }
    const usual = earlier[last.from]
    if (last.tie && usual !== undefined) {
      before.push(await tokenAtTie(this.box, { variant, prompt, before, sampling, grammar }, usual))
    }
    if (before.length >= job.maxTokens) return before
    const { tokens } = await this.box.ask(variant, [...prompt, ...before], {
      replayedTokens: before.length,
      maxTokens: job.maxTokens - before.length,
      sampling,
      grammar,
    })
    return [...before, ...tokens]
  }
}
