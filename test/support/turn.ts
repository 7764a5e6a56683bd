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
