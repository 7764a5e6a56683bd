// Preloaded into a process: the wall clock jumps by hours and days, forward and back, forty times a second.
const HOUR = 3_600_000
const OFFSETS = [0, 5 * HOUR, -5 * HOUR, 720 * HOUR, -HOUR, 29 * HOUR]
const STAY_MS = 25

const SteadyDate = Date
const now = () => SteadyDate.now() + (OFFSETS[Math.floor(performance.now() / STAY_MS) % OFFSETS.length] ?? 0)

globalThis.Date = class extends SteadyDate {
  constructor(...args) {
    if (args.length === 0) super(now())
    else super(...args)
  }

  static now() {
    return now()
  }
}
