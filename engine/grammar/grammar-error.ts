/** A grammar that is refused, or that failed at work; the message is for the client. */
export class GrammarError extends Error {
  constructor(message: string) {
    super(message)
    this.name = 'GrammarError'
  }
}
