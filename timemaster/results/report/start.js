// From top to bottom.
"use strict";

drawHead();
drawCurves();
drawEvaluation();
drawBrowser();
