/** From what a model wrote to the answer that is scored. */
package org.meteora.eval.clean;
