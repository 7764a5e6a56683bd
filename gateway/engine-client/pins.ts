import type { Config } from '../../engine/config/index.js'

/**
 * What operators pinned and unpinned by rung ("model:rung"), as long as the file says nothing new of the model: engines that
 * start later are told.
 */
export class Pins {
  readonly #told = new Map<string, boolean>()
  #byFile: ReadonlyMap<string, boolean>

  constructor(config: Pick<Config, 'models'>) {
    this.#byFile = pinsOf(config)
  }

  /** An operator pinned the rung, or let it go. */
  tell(variant: string, pinned: boolean): void {
    this.#told.set(variant, pinned)
  }

  /** Forgets what the file now says otherwise, and what it no longer has, as the engines do. */
  follow(config: Pick<Config, 'models'>): void {
    const byFile = pinsOf(config)
    for (const variant of this.#told.keys()) {
      const [model = ''] = variant.split(':')
      if (byFile.get(model) !== this.#byFile.get(model)) this.#told.delete(variant)
    }
    this.#byFile = byFile
  }

  /** Arguments of an engine's start. */
  get args(): string[] {
    return [...this.#told].flatMap(([variant, pinned]) => [pinned ? '--pin' : '--unpin', variant])
  }
}

function pinsOf({ models }: Pick<Config, 'models'>): Map<string, boolean> {
  return new Map(models.map(({ id, placement }) => [id, placement.pin]))
}
