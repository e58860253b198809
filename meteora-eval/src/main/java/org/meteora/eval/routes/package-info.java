/** Which adapter acted on which token: recorded, and drawn as HTML and PNG. */
package org.meteora.eval.routes;
