/** A point in time that the test decides on: `reached` resolves when `reach` is called. */
export class Turn {
  readonly reached: Promise<void>
  reach: () => void = () => undefined

  constructor() {
    this.reached = new Promise((resolve) => {
      this.reach = resolve
    })
  }
}

/** Two turns of the event loop: what was due in this one, and what that made due, has run. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(() => setImmediate(resolve)))
